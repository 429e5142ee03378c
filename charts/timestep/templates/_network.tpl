{{/*
Network policies: each component has one, for both directions. Whatever it doesn't allow is denied, as a policy that
chooses a pod denies the rest.
*/}}

{{/* Pods of the release, by component, as peers. Flow runs' pods may be in another namespace. */}}
{{- define "timestep.peers" -}}
{{- range .components }}
- podSelector:
    matchLabels:
      {{- include "timestep.selectorLabels" (dict "context" $.context "component" .) | nindent 6 }}
  {{- if eq . "flow-run" }}
  namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ include "timestep.jobNamespace" $.context }}
  {{- else }}
  namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ $.context.Release.Namespace }}
  {{- end }}
{{- end }}
{{- end -}}

{{/*
One policy. "from" are the components that reach "port", "to" those that it reaches, by the port each; "open" says that
it may call any address, "kubernetes" that it asks the cluster's API.
*/}}
{{- define "timestep.networkPolicy" -}}
{{- $values := .context.Values -}}
{{- $ports := dict "database" 5432 "prefect-server" 4200 "model-server" 8001 "api" 8000 -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "timestep.fullname" .context }}-{{ .component }}
  namespace: {{ .namespace | default .context.Release.Namespace }}
  labels:
    {{- include "timestep.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "timestep.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- if or .from .anybody }}
  ingress:
    {{- with .from }}
    - from:
        {{- include "timestep.peers" (dict "context" $.context "components" .) | nindent 8 }}
      ports:
        - port: {{ get $ports $.component }}
          protocol: TCP
    {{- end }}
    {{- if .anybody }}
    - ports:
        - port: {{ get $ports $.component }}
          protocol: TCP
      {{- with .public }}
      from:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- end }}
  {{- else }}
  ingress: []
  {{- end }}
  egress:
    {{- if and .open $values.networkPolicy.openEgress }}
    - {}
    {{- else }}
    # Names are resolved by whatever serves DNS.
    - ports:
        - port: 53
          protocol: UDP
        - port: 53
          protocol: TCP
    {{- range .to }}
    {{- if eq . "redis" }}
    - ports:
        - port: {{ $values.networkPolicy.redisPort }}
          protocol: TCP
    {{- else if and (eq . "prefect-server") (not $values.prefectServer.enabled) }}
    - ports:
        - port: {{ $values.networkPolicy.prefectPort }}
          protocol: TCP
    {{- else if and (eq . "database") (not $values.database.enabled) }}
    - ports:
        - port: {{ $values.networkPolicy.databasePort }}
          protocol: TCP
    {{- else }}
    - to:
        {{- include "timestep.peers" (dict "context" $.context "components" (list .)) | nindent 8 }}
      ports:
        - port: {{ get $ports . }}
          protocol: TCP
    {{- end }}
    {{- end }}
    {{- if .kubernetes }}
    # The cluster's API: its address is the cluster's secret, its ports are these.
    - ports:
        - port: 443
          protocol: TCP
        - port: 6443
          protocol: TCP
    {{- end }}
    {{- with $values.networkPolicy.extraEgress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- end }}
{{- end -}}
