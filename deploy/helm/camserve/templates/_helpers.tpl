{{- define "camserve.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "camserve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "camserve.labels" -}}
{{ include "camserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "camserve.image" -}}
{{- $variant := ternary "cuda" "cpu" .Values.gpu.enabled -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $variant)) -}}
{{- end -}}

{{/* The service ends shutdown_delay_s + request_timeout_s + 5 seconds after SIGTERM at the latest. */}}
{{- define "camserve.gracePeriod" -}}
{{- $needed := add (ceil .Values.settings.shutdown_delay_s | int) (ceil .Values.settings.request_timeout_s | int) 10 -}}
{{- $given := int .Values.terminationGracePeriodSeconds -}}
{{- if and $given (lt $given (sub $needed 5 | int)) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d, but shutdown_delay_s and request_timeout_s need %d; accepted requests would be lost" $given (sub $needed 5)) -}}
{{- end -}}
{{- $given | default $needed -}}
{{- end -}}

{{- define "camserve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Any user but root: the image's own is 10001, platforms that assign one may. */}}
{{- define "camserve.podSecurity" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}
