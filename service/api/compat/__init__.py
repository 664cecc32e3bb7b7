"""The protocols of other servers, whose clients work unchanged: a module each, a translation to the explainer and back.

    exchange          a request asked of the explainer: deadline, cancellation, log
    instances         the JSON of KServe v1, Vertex AI and SageMaker: {"instances": [...], "parameters": {...}}
    tensors           the Open Inference Protocol's requests and answers as bytes; knows no HTTP and no images
    kserve            KServe v1
    open_inference    Open Inference Protocol v2, as Triton and KServe speak it: the server, its models, their repository
    infer             the same protocol's inference: images in, tensors out
    torchserve        TorchServe's inference address
    invocations       SageMaker's and Vertex AI's own addresses

A request is told apart by its path and its first bytes, not by its Content-Type: clients send octet-stream, a form's, or none.
"""
