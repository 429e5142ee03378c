{{/*
The base job templates of the work pools: what the Kubernetes worker makes a flow run's job of. "training" says whose.
Names in double braces are Prefect's, filled in from the variables below: their defaults, the deployment's, the run's.
*/}}
{{- define "timestep.jobTemplate" -}}
{{- $context := .context -}}
{{- $job := $context.Values.worker.job -}}
{{- $training := $context.Values.training -}}
{{- /* What training has none of comes from worker.job; spelled out, as `merge` would take a 0 or an empty map for nothing. */ -}}
{{- $own := ternary $training $job .training -}}
{{- $values := dict
  "resources" ($own.resources | default dict)
  "nodeSelector" $own.nodeSelector
  "tolerations" $own.tolerations
  "affinity" $own.affinity
  "priorityClassName" $own.priorityClassName
  "runtimeClassName" (ternary $training.runtimeClassName "" .training)
  "activeDeadlineSeconds" $own.activeDeadlineSeconds
  "terminationGracePeriodSeconds" $own.terminationGracePeriodSeconds
  "ttlSecondsAfterFinished" $job.ttlSecondsAfterFinished
  "extraEnv" (concat $job.extraEnv (ternary $training.extraEnv list .training))
  "extraEnvFrom" (concat $job.extraEnvFrom (ternary $training.extraEnvFrom list .training))
  "podLabels" (merge (dict) (ternary $training.podLabels dict .training) $job.podLabels)
  "podAnnotations" (merge (dict) (ternary $training.podAnnotations dict .training) $job.podAnnotations)
-}}
{{- $parts := dict "context" $context "component" "flow-run" "values" $values -}}
{{- $mounts := list "storage" "agents" -}}
{{- $manifest := include "timestep.jobManifest" (merge (dict "mounts" $mounts "training" .training) $parts) | fromYaml -}}
{{- $properties := include "timestep.jobVariables" (merge (dict "training" .training) $parts) | fromYaml -}}
{{- toPrettyJson (dict
  "job_configuration" (dict
    "name" "{{ name }}"
    "command" "{{ command }}"
    "env" "{{ env }}"
    "labels" "{{ labels }}"
    "annotations" "{{ annotations }}"
    "namespace" "{{ namespace }}"
    "job_manifest" $manifest
  )
  "variables" (dict "type" "object" "properties" $properties)
) -}}
{{- end -}}

{{/* The job. What stands in its environment yields to a run's variable `env` of the same name. */}}
{{- define "timestep.jobManifest" -}}
apiVersion: batch/v1
kind: Job
metadata:
  annotations: {{ "'{{ annotations }}'" }}
  labels:
    app.kubernetes.io/instance: {{ .context.Release.Name }}
    app.kubernetes.io/component: flow-run
  namespace: {{ "'{{ namespace }}'" }}
  generateName: {{ "'{{ name }}-'" }}
spec:
  # A run that dies is started again by the service, as the same flow run; Kubernetes must not do it as well.
  backoffLimit: 0
  ttlSecondsAfterFinished: {{ "'{{ finished_job_ttl }}'" }}
  activeDeadlineSeconds: {{ "'{{ active_deadline_seconds }}'" }}
  template:
    metadata:
      labels:
        {{- include "timestep.podLabels" . | nindent 8 }}
      {{- with include "timestep.podAnnotations" . }}
      annotations:
        {{- . | nindent 8 }}
      {{- end }}
    spec:
      # Prefect demands both here, Kubernetes takes no notice of them.
      parallelism: 1
      completions: 1
      restartPolicy: Never
      serviceAccountName: {{ "'{{ service_account_name }}'" }}
      priorityClassName: {{ "'{{ priority_class_name }}'" }}
      runtimeClassName: {{ "'{{ runtime_class_name }}'" }}
      nodeSelector: {{ "'{{ node_selector }}'" }}
      tolerations: {{ "'{{ tolerations }}'" }}
      affinity: {{ "'{{ affinity }}'" }}
      {{- $fixed := dict "terminationGracePeriodSeconds" .values.terminationGracePeriodSeconds }}
      {{- include "timestep.pod" (dict "context" .context "component" "flow-run" "values" $fixed) | nindent 6 }}
      containers:
        - name: prefect-job
          image: {{ "'{{ image }}'" }}
          imagePullPolicy: {{ "'{{ image_pull_policy }}'" }}
          securityContext:
            {{- include "timestep.securityContext" . | nindent 12 }}
          args: {{ "'{{ command }}'" }}
          env:
            {{- include "timestep.env" (merge (dict "needs" (list "database" "prefect" "storage" "service" "agents" "model" "work")) .) | nindent 12 }}
          {{- with include "timestep.envFrom" . }}
          envFrom:
            {{- . | nindent 12 }}
          {{- end }}
          resources:
            {{- range $kind, $short := dict "requests" "request" "limits" "limit" }}
            {{ $kind }}:
              cpu: {{ printf "'{{ cpu_%s }}'" $short }}
              memory: {{ printf "'{{ memory_%s }}'" $short }}
              {{- range $name, $value := omit (get $.values.resources $kind | default dict) "cpu" "memory" }}
              {{ $name }}: {{ $value | quote }}
              {{- end }}
              {{- if and $.training (eq $kind "limits") (gt (int $.context.Values.training.gpu.count) 0) }}
              nvidia.com/gpu: {{ $.context.Values.training.gpu.count | int | quote }}
              {{- end }}
            {{- end }}
          volumeMounts:
            {{- include "timestep.volumeMounts" . | nindent 12 }}
      volumes:
        {{- include "timestep.volumes" . | nindent 8 }}
{{- end -}}

{{/* What a deployment or a run may set of its job, in Prefect's form: JSON schema. */}}
{{- define "timestep.jobVariables" -}}
{{- $values := .values -}}
{{- $image := .context.Values.worker.job.image | default (include "timestep.image" .context) -}}
{{- if .training -}}{{- $image = .context.Values.training.image | default $image -}}{{- end -}}
{{- $requests := $values.resources.requests | default dict -}}
{{- $limits := $values.resources.limits | default dict -}}
name:
  title: Name
  description: Name of the job; Kubernetes adds some letters.
  type: string
command:
  title: Command
  description: Arguments of the image's entry.
  type: string
  default: job
env:
  title: Environment Variables
  description: More environment variables.
  type: object
  additionalProperties:
    type: string
  default: {}
labels:
  title: Labels
  description: More labels of the job and its pod.
  type: object
  additionalProperties:
    type: string
  default: {}
annotations:
  title: Annotations
  description: More annotations of the job and its pod.
  type: object
  additionalProperties:
    type: string
  default: {}
namespace:
  title: Namespace
  description: Namespace of the job. The worker may make jobs in the default one alone.
  type: string
  default: {{ include "timestep.jobNamespace" .context }}
image:
  title: Image
  description: Image of the container.
  type: string
  default: {{ $image | quote }}
image_pull_policy:
  title: Image Pull Policy
  description: When the node pulls the image.
  type: string
  enum: [IfNotPresent, Always, Never]
  default: {{ .context.Values.image.pullPolicy }}
service_account_name:
  title: Service Account Name
  description: Service account of the pod.
  type: string
  default: {{ include "timestep.serviceAccountName" (dict "context" .context "component" "flow-run" "values" .context.Values.worker.job) }}
finished_job_ttl:
  title: Finished Job TTL
  description: Seconds that the finished job is kept.
  type: integer
  default: {{ int $values.ttlSecondsAfterFinished }}
active_deadline_seconds:
  title: Active Deadline Seconds
  description: Seconds after which the job is stopped, finished or not.
  type: integer
  {{- with int $values.activeDeadlineSeconds }}
  default: {{ . }}
  {{- end }}
{{- range $name, $default := dict "cpu_request" $requests.cpu "cpu_limit" $limits.cpu "memory_request" $requests.memory "memory_limit" $limits.memory }}
{{ $name }}:
  title: {{ $name | replace "_" " " | title | replace "Cpu" "CPU" }}
  description: {{ ternary "Processor time, such as '500m' or '2'." "Memory, such as '512Mi'." (hasPrefix "cpu" $name) }}
  type: string
  {{- with $default }}
  default: {{ . | quote }}
  {{- end }}
{{- end }}
node_selector:
  title: Node Selector
  description: Labels of the nodes the pod may run on.
  type: object
  additionalProperties:
    type: string
  default: {{ $values.nodeSelector | toJson }}
tolerations:
  title: Tolerations
  description: Taints of nodes that the pod tolerates.
  type: array
  items:
    type: object
  default: {{ $values.tolerations | toJson }}
affinity:
  title: Affinity
  description: Which nodes and neighbours the pod prefers or avoids.
  type: object
  default: {{ $values.affinity | toJson }}
priority_class_name:
  title: Priority Class Name
  description: Priority class of the pod.
  type: string
  {{- with $values.priorityClassName }}
  default: {{ . }}
  {{- end }}
runtime_class_name:
  title: Runtime Class Name
  description: Runtime class of the pod.
  type: string
  {{- with $values.runtimeClassName }}
  default: {{ . }}
  {{- end }}
{{- end -}}
