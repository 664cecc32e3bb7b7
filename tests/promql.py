"""What a PromQL expression asks for: the metrics it names, with the labels it reads from each."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

import promql_parser
from promql_parser import AggregateExpr, BinaryExpr, Expr, VectorSelector


@dataclass
class References:
    """`labels` by metric; `grouping`: labels of aggregations and matches, which any of the metrics may have.

    `values` are those that labels are compared with for equality, by label.
    """

    labels: dict[str, set[str]] = field(default_factory=dict)
    grouping: set[str] = field(default_factory=set)
    values: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def references(expression: str) -> References:
    """Parses an expression, of Grafana with its variables.

    Raises:
        ValueError: it is not PromQL.
    """
    found = References()

    def visit(node: Expr) -> bool:
        if isinstance(node, VectorSelector):
            assert node.name, f"a selector names its metric: {node.prettify()}"
            matchers = node.matchers.matchers
            found.labels.setdefault(node.name, set()).update(matcher.name for matcher in matchers)
            for matcher in matchers:
                if str(matcher.op) in {"MatchOp.Equal", "MatchOp.NotEqual"}:
                    found.values[matcher.name].add(matcher.value)
        elif isinstance(node, AggregateExpr) and node.modifier:
            found.grouping.update(node.modifier.labels)
        elif isinstance(node, BinaryExpr) and node.modifier and node.modifier.matching:
            found.grouping.update(node.modifier.matching.labels)
        return True

    promql_parser.walk(promql_parser.parse(without_variables(expression)), visit)
    return found


def without_variables(expression: str) -> str:
    """Grafana's variables, and those of the Prometheus adapter, replaced by what they may stand for."""
    plain = expression.replace("$__rate_interval", "1m").replace("<<.Series>>", "camserve_queue_depth")
    plain = plain.replace("<<.LabelMatchers>>", 'namespace="default"').replace("<<.GroupBy>>", "pod")
    return re.sub(r"\$[a-z]+\b", ".*", plain)
