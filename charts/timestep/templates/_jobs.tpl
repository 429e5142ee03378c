{{/*
The service's own jobs. Each is named after its content, so that the same manifests can be applied again without Helm,
where a job that exists can't be changed.
*/}}

{{- define "timestep.job" -}}
{{- $template := include (printf "timestep.%sPod" .component) .context -}}
{{- $content := ternary (printf "%s %d" $template .context.Release.Revision) $template (not (empty .eachRevision)) -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "timestep.fullname" .context }}-{{ .name | default .component }}-{{ $content | sha256sum | trunc 8 }}
  namespace: {{ .context.Release.Namespace }}
  labels:
    {{- include "timestep.labels" (dict "context" .context "component" .component) | nindent 4 }}
  {{- with .hook }}
  annotations:
    helm.sh/hook: {{ .events }}
    helm.sh/hook-weight: {{ .weight | quote }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
  {{- end }}
spec:
  backoffLimit: {{ .backoffLimit }}
  # Of the node's fetching the image, too.
  activeDeadlineSeconds: {{ .deadline }}
  {{- if .hook }}
  # One that failed is kept for its log, for a day.
  ttlSecondsAfterFinished: 86400
  {{- end }}
  template:
    {{- $template | nindent 4 }}
{{- end -}}

{{- define "timestep.jobPod" -}}
{{- $parts := dict "context" .context "component" .component "values" .context.Values.jobs "token" .token "bare" .token -}}
metadata:
  labels:
    {{- include "timestep.podLabels" $parts | nindent 4 }}
  {{- with include "timestep.podAnnotations" (merge (dict "checksums" .checksums) $parts) }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ .serviceAccount }}
  {{- include "timestep.pod" $parts | nindent 2 }}
  containers:
    - name: {{ .component }}
      {{- include "timestep.container" $parts | nindent 6 }}
      args: {{ toJson .args }}
      env:
        {{- include "timestep.env" (merge (dict "needs" .needs "extra" .extra) $parts) | nindent 8 }}
      {{- with include "timestep.envFrom" $parts }}
      envFrom:
        {{- . | nindent 8 }}
      {{- end }}
      volumeMounts:
        {{- include "timestep.volumeMounts" (merge (dict "mounts" .mounts) $parts) | nindent 8 }}
  volumes:
    {{- include "timestep.volumes" (merge (dict "mounts" .mounts) $parts) | nindent 4 }}
{{- end -}}

{{- define "timestep.secretsArguments" -}}
{{- $arguments := list "--prefix" (include "timestep.fullname" .) "--namespace" .Release.Namespace -}}
{{- if include "timestep.hasRemoteJobs" . -}}
{{- $arguments = concat $arguments (list "--also-namespace" (include "timestep.jobNamespace" .)) -}}
{{- end -}}
{{- if .Values.database.enabled -}}
{{- $arguments = concat $arguments (list "--database-host" (include "timestep.host" (dict "context" . "component" "database"))) -}}
{{- end -}}
{{- concat $arguments (include "timestep.generatedSecrets" . | fromYamlArray) | toJson -}}
{{- end -}}

{{- define "timestep.secretsPod" -}}
{{- include "timestep.jobPod" (dict "context" . "component" "secrets" "token" true
  "serviceAccount" (printf "%s-secrets" (include "timestep.fullname" .))
  "args" (concat (list "secrets") (include "timestep.secretsArguments" . | fromJsonArray))
  "needs" list "mounts" list "extra" list "checksums" list) -}}
{{- end -}}

{{- define "timestep.forgetPod" -}}
{{- include "timestep.jobPod" (dict "context" . "component" "secrets" "token" true
  "serviceAccount" (printf "%s-secrets" (include "timestep.fullname" .))
  "args" (concat (list "secrets" "--forget") (include "timestep.secretsArguments" . | fromJsonArray))
  "needs" list "mounts" list "extra" list "checksums" list) -}}
{{- end -}}

{{- define "timestep.migratePod" -}}
{{- include "timestep.jobPod" (dict "context" . "component" "migrate" "serviceAccount" "default"
  "args" (list "migrate") "needs" (list "database") "mounts" list "checksums" list
  "extra" (list (merge (dict "name" "TIMESTEP_FIRST_API_KEY") (include "timestep.apiKey" . | fromYaml)))) -}}
{{- end -}}

{{- define "timestep.registerPod" -}}
{{- include "timestep.jobPod" (dict "context" . "component" "register"
  "serviceAccount" (printf "%s-register" (include "timestep.fullname" .))
  "args" (list "register") "mounts" (list "storage" "agents" "register") "checksums" (list "agents" "register") "extra" list
  "needs" (list "database" "prefect" "storage" "service" "agents" "model" "work")) -}}
{{- end -}}

{{/* Whether the migration comes before the release's resources: not where the database is one of them. */}}
{{- define "timestep.migratesFirst" -}}
{{- if and .Values.hooks.enabled (not .Values.database.enabled) -}}true{{- end -}}
{{- end -}}

{{/*
The service account of the Secrets' job and its rights come before it (weight -30), at each of its events, and go with it
once it has succeeded: between two of them nobody may write Secrets.
*/}}
{{- define "timestep.secretsHook" -}}
{{- if .Values.hooks.enabled -}}
annotations:
  helm.sh/hook: pre-install,pre-upgrade,pre-delete
  helm.sh/hook-weight: "-30"
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
{{- end -}}
