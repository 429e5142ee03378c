{{/*
What several resources share. Most helpers take a dict: "context" is the chart's root, "component" a name such as
"model-server", "values" that component's values.
*/}}

{{/* FULL: the release's name where it says what this is, else RELEASE-timestep; short enough for the longest suffix. */}}
{{- define "timestep.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 36 | trimSuffix "-" -}}
{{- else if contains "timestep" .Release.Name -}}
{{- .Release.Name | trunc 36 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-timestep" (.Release.Name | trunc 27 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "timestep.selectorLabels" -}}
app.kubernetes.io/name: timestep
app.kubernetes.io/instance: {{ .context.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "timestep.labels" -}}
{{ include "timestep.selectorLabels" . }}
app.kubernetes.io/part-of: timestep
app.kubernetes.io/version: {{ .context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .context.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .context.Chart.Name .context.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of pods: without the chart's version, so that a new chart alone restarts nothing. */}}
{{- define "timestep.podLabels" -}}
{{- $labels := include "timestep.selectorLabels" . | fromYaml -}}
{{- merge $labels (.values.podLabels | default dict) .context.Values.podLabels | toYaml -}}
{{- end -}}

{{/* Annotations of pods. "checksums" names templates whose change restarts the pods. */}}
{{- define "timestep.podAnnotations" -}}
{{- $annotations := merge (dict) (.values.podAnnotations | default dict) .context.Values.podAnnotations -}}
{{- range .checksums -}}
{{- $_ := set $annotations (printf "checksum/%s" .) (include (print $.context.Template.BasePath "/" . "-configmap.yaml") $.context | sha256sum) -}}
{{- end -}}
{{- with $annotations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "timestep.image" -}}
{{- $image := .Values.image -}}
{{- $registry := .Values.global.imageRegistry | default $image.registry -}}
{{- $name := $image.repository -}}
{{- if $registry -}}{{- $name = printf "%s/%s" (trimSuffix "/" $registry) $name -}}{{- end -}}
{{- $name = printf "%s:%s" $name ($image.tag | default .Chart.AppVersion) -}}
{{- if $image.digest -}}{{- $name = printf "%s@%s" $name $image.digest -}}{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "timestep.imagePullSecrets" -}}
{{- $names := list -}}
{{- range concat .Values.global.imagePullSecrets .Values.image.pullSecrets -}}
{{- $names = append $names (dict "name" .) -}}
{{- end -}}
{{- with $names | uniq }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Pod Security Standard "restricted". */}}
{{- define "timestep.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "timestep.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The name of a component's service account. */}}
{{- define "timestep.serviceAccountName" -}}
{{- .values.serviceAccount.name | default (printf "%s-%s" (include "timestep.fullname" .context) .component) -}}
{{- end -}}

{{/* Where flow runs get their pods. */}}
{{- define "timestep.jobNamespace" -}}
{{- .Values.worker.job.namespace | default .Release.Namespace -}}
{{- end -}}

{{- define "timestep.hasRemoteJobs" -}}
{{- if and .Values.worker.enabled (ne (include "timestep.jobNamespace" .) .Release.Namespace) -}}true{{- end -}}
{{- end -}}

{{/* The name of a Service as pods of every namespace resolve it. */}}
{{- define "timestep.host" -}}
{{- printf "%s-%s.%s.svc" (include "timestep.fullname" .context) .component .context.Release.Namespace -}}
{{- end -}}

{{- define "timestep.prefectAPIURL" -}}
{{- if .Values.prefectServer.enabled -}}
{{- printf "http://%s:4200/api" (include "timestep.host" (dict "context" . "component" "prefect-server")) -}}
{{- else -}}
{{- .Values.prefectServer.url -}}
{{- end -}}
{{- end -}}

{{/* The public address of the Prefect UI, empty where there is none. */}}
{{- define "timestep.prefectUIURL" -}}
{{- $prefect := .Values.prefectServer -}}
{{- if $prefect.uiURL -}}
{{- $prefect.uiURL -}}
{{- else if and $prefect.host (or .Values.ingress.enabled .Values.gateway.enabled) -}}
{{- $https := or (and .Values.ingress.enabled .Values.ingress.tls.enabled) (and .Values.gateway.enabled .Values.gateway.https) -}}
{{- printf "%s://%s" (ternary "https" "http" (not (empty $https))) $prefect.host -}}
{{- end -}}
{{- end -}}

{{/* The Secrets that the chart's job makes: those that no existing one replaces. */}}
{{- define "timestep.generatedSecrets" -}}
{{- $names := list -}}
{{- if and .Values.database.enabled (not .Values.database.existingSecret) -}}{{- $names = append $names "database" -}}{{- end -}}
{{- if not .Values.serviceKey.existingSecret -}}{{- $names = append $names "service-key" -}}{{- end -}}
{{- if and .Values.prefectServer.auth.enabled (not .Values.prefectServer.auth.existingSecret) -}}{{- $names = append $names "prefect-auth" -}}{{- end -}}
{{- if not .Values.apiKey.existingSecret -}}{{- $names = append $names "api-key" -}}{{- end -}}
{{- toYaml $names -}}
{{- end -}}

{{/* A reference to a key of a Secret: of an existing one, else of the generated one. */}}
{{- define "timestep.secretKeyRef" -}}
valueFrom:
  secretKeyRef:
    name: {{ .existing | default (printf "%s-%s" (include "timestep.fullname" .context) .generated) }}
    key: {{ .key }}
{{- end -}}

{{- define "timestep.databaseURL" -}}
{{- $database := .Values.database -}}
{{- include "timestep.secretKeyRef" (dict "context" . "existing" $database.existingSecret "generated" "database" "key" (ternary $database.urlKey "url" (not (empty $database.existingSecret)))) -}}
{{- end -}}

{{- define "timestep.prefectAuth" -}}
{{- $auth := .Values.prefectServer.auth -}}
{{- include "timestep.secretKeyRef" (dict "context" . "existing" $auth.existingSecret "generated" "prefect-auth" "key" (ternary $auth.key "auth" (not (empty $auth.existingSecret)))) -}}
{{- end -}}

{{- define "timestep.serviceKey" -}}
{{- $key := .Values.serviceKey -}}
{{- include "timestep.secretKeyRef" (dict "context" . "existing" $key.existingSecret "generated" "service-key" "key" (ternary $key.key "key" (not (empty $key.existingSecret)))) -}}
{{- end -}}

{{- define "timestep.apiKey" -}}
{{- $key := .Values.apiKey -}}
{{- include "timestep.secretKeyRef" (dict "context" . "existing" $key.existingSecret "generated" "api-key" "key" (ternary $key.key "key" (not (empty $key.existingSecret)))) -}}
{{- end -}}

{{/* The ConfigMap of the agents' files, empty where there is none; and the files' paths in the pods. */}}
{{- define "timestep.agentsConfigMap" -}}
{{- if .Values.agents.existingConfigMap -}}
{{- .Values.agents.existingConfigMap -}}
{{- else if .Values.agents.files -}}
{{- printf "%s-agents" (include "timestep.fullname" .) -}}
{{- end -}}
{{- end -}}

{{- define "timestep.agentsPaths" -}}
{{- $paths := list -}}
{{- range (ternary .Values.agents.existingFiles (keys .Values.agents.files | sortAlpha) (not (empty .Values.agents.existingConfigMap))) -}}
{{- $paths = append $paths (printf "/etc/timestep/agents/%s" .) -}}
{{- end -}}
{{- join ":" $paths -}}
{{- end -}}

{{/*
The environment of a container, as a YAML list. "needs" names the groups: database, prefect, storage, service, agents,
model, work. "extra" is a list of the container's own; users' lists come last, and the last entry of a name counts.
"bare" containers, which run none of the users' code, get nothing of the users' common lists.
*/}}
{{- define "timestep.env" -}}
{{- $values := .context.Values -}}
{{- $env := list (dict "name" "TIMESTEP_HOME" "value" "/var/lib/timestep") -}}
{{- if has "database" .needs -}}
{{- $env = append $env (merge (dict "name" "TIMESTEP_DATABASE_URL") (include "timestep.databaseURL" .context | fromYaml)) -}}
{{- end -}}
{{- if has "prefect" .needs -}}
{{- $env = append $env (dict "name" "TIMESTEP_PREFECT_API_URL" "value" (include "timestep.prefectAPIURL" .context)) -}}
{{- if $values.prefectServer.auth.enabled -}}
{{- $env = append $env (merge (dict "name" "TIMESTEP_PREFECT_AUTH") (include "timestep.prefectAuth" .context | fromYaml)) -}}
{{- end -}}
{{- with include "timestep.prefectUIURL" .context -}}
{{- $env = append $env (dict "name" "TIMESTEP_PREFECT_UI_URL" "value" .) -}}
{{- end -}}
{{- end -}}
{{- if has "storage" .needs -}}
{{- if $values.storage.existingSecret -}}
{{- $env = append $env (dict "name" "TIMESTEP_STORAGE_URL" "valueFrom" (dict "secretKeyRef" (dict "name" $values.storage.existingSecret "key" $values.storage.key))) -}}
{{- else -}}
{{- $env = append $env (dict "name" "TIMESTEP_STORAGE_URL" "value" "local:///var/lib/timestep-storage") -}}
{{- end -}}
{{- end -}}
{{- if has "service" .needs -}}
{{- $env = append $env (merge (dict "name" "TIMESTEP_SERVICE_KEY") (include "timestep.serviceKey" .context | fromYaml)) -}}
{{- end -}}
{{- if and (has "service" .needs) $values.modelServer.enabled -}}
{{- $env = append $env (dict "name" "TIMESTEP_MODEL_SERVER_URL" "value" (printf "http://%s:8001" (include "timestep.host" (dict "context" .context "component" "model-server")))) -}}
{{- end -}}
{{- if and (has "work" .needs) $values.api.enabled -}}
{{- /* Where a batch's requests go. */ -}}
{{- $env = append $env (dict "name" "TIMESTEP_API_URL" "value" (printf "http://%s:8000" (include "timestep.host" (dict "context" .context "component" "api")))) -}}
{{- end -}}
{{- if has "agents" .needs -}}
{{- with include "timestep.agentsPaths" .context -}}
{{- $env = append $env (dict "name" "TIMESTEP_AGENTS" "value" .) -}}
{{- end -}}
{{- end -}}
{{- if has "model" .needs -}}
{{- $env = append $env (dict "name" "TIMESTEP_MODEL" "value" $values.model.name) -}}
{{- $env = append $env (dict "name" "TIMESTEP_CONTEXT_LENGTH" "value" (toString (int $values.model.contextLength))) -}}
{{- $env = append $env (dict "name" "TIMESTEP_THREADS" "value" (toString (int $values.model.threads))) -}}
{{- end -}}
{{- if has "work" .needs -}}
{{- if include "timestep.hasTrainingPool" .context -}}
{{- $env = append $env (dict "name" "TIMESTEP_TRAINING_POOL" "value" "timestep-training") -}}
{{- end -}}
{{- $env = append $env (dict "name" "TIMESTEP_WARM" "value" (toString $values.warmWorker.enabled)) -}}
{{- end -}}
{{- $byName := dict -}}
{{- $names := list -}}
{{- range concat $env (.extra | default list) (ternary list $values.extraEnv (.bare | default false)) (.values.extraEnv | default list) -}}
{{- $_ := set $byName .name . -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $merged := list -}}
{{- range $names | uniq -}}
{{- $merged = append $merged (get $byName .) -}}
{{- end -}}
{{- toYaml $merged -}}
{{- end -}}

{{- define "timestep.envFrom" -}}
{{- with concat (ternary list .context.Values.extraEnvFrom (.bare | default false)) (.values.extraEnvFrom | default list) }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Whether training runs have a pool, and so a template, of their own. */}}
{{- define "timestep.hasTrainingPool" -}}
{{- if and .Values.worker.enabled .Values.training.enabled -}}true{{- end -}}
{{- end -}}

{{/* Whether objects are kept in a volume of this chart or of the user's. */}}
{{- define "timestep.hasStorageVolume" -}}
{{- if not .Values.storage.existingSecret -}}true{{- end -}}
{{- end -}}

{{/* Volumes and their mounts. "mounts" names those beside home and tmp: storage, agents, register. */}}
{{- define "timestep.volumes" -}}
- name: home
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- if and (has "storage" .mounts) (include "timestep.hasStorageVolume" .context) }}
- name: storage
  persistentVolumeClaim:
    claimName: {{ .context.Values.storage.existingClaim | default (printf "%s-storage" (include "timestep.fullname" .context)) }}
{{- end }}
{{- if has "agents" .mounts }}
{{- with include "timestep.agentsConfigMap" .context }}
- name: agents
  configMap:
    name: {{ . }}
{{- end }}
{{- end }}
{{- if has "register" .mounts }}
- name: register
  configMap:
    name: {{ include "timestep.fullname" .context }}-register
{{- end }}
{{- end -}}

{{- define "timestep.volumeMounts" -}}
- name: home
  mountPath: /var/lib/timestep
- name: tmp
  mountPath: /tmp
{{- if and (has "storage" .mounts) (include "timestep.hasStorageVolume" .context) }}
- name: storage
  mountPath: /var/lib/timestep-storage
{{- end }}
{{- if and (has "agents" .mounts) (include "timestep.agentsConfigMap" .context) }}
- name: agents
  mountPath: /etc/timestep/agents
  readOnly: true
{{- end }}
{{- if has "register" .mounts }}
- name: register
  mountPath: /etc/timestep/register
  readOnly: true
{{- end }}
{{- end -}}

{{/*
The taints that a pod tolerates: the user's, and those of a lost node for a while. The database's volume may be there: it
waits as long as Kubernetes lets it. Flow runs are started again by the service, wherever their pods are.
*/}}
{{- define "timestep.tolerations" -}}
{{- $tolerations := .values.tolerations | default list -}}
{{- if not (has .component (list "database" "flow-run")) -}}
{{- $given := .context.Values.nodeLossSeconds -}}
{{- $seconds := int (ternary 30 $given (kindIs "invalid" $given)) -}}
{{- $keys := list -}}
{{- range $tolerations -}}
{{- if eq (.effect | default "NoExecute") "NoExecute" -}}{{- $keys = append $keys (.key | default "") -}}{{- end -}}
{{- end -}}
{{- range list "node.kubernetes.io/not-ready" "node.kubernetes.io/unreachable" -}}
{{- if not (or (has . $keys) (has "" $keys)) -}}
{{- $tolerations = append $tolerations (dict "key" . "operator" "Exists" "effect" "NoExecute" "tolerationSeconds" $seconds) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $tolerations -}}
{{- end -}}

{{/* What every pod says of itself: who it is, how it is secured, where it may run. */}}
{{- define "timestep.pod" -}}
automountServiceAccountToken: {{ .token | default false }}
# Service links would set TIMESTEP_… variables after the names of Services, and those are our settings.
enableServiceLinks: false
securityContext:
  {{- include "timestep.podSecurityContext" . | nindent 2 }}
{{- with include "timestep.imagePullSecrets" .context }}
imagePullSecrets:
  {{- . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "timestep.tolerations" . | fromYamlArray }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What every container says of itself, but its name, role, environment and volumes. */}}
{{- define "timestep.container" -}}
image: {{ include "timestep.image" .context }}
imagePullPolicy: {{ .context.Values.image.pullPolicy }}
securityContext:
  {{- include "timestep.securityContext" . | nindent 2 }}
{{- with .values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The init container that waits for a database at this version's migrations. */}}
{{- define "timestep.wait" -}}
- name: wait
  {{- include "timestep.container" (dict "context" .context "values" (dict "resources" .context.Values.jobs.resources)) | nindent 2 }}
  args: [wait]
  env:
    {{- include "timestep.env" (dict "context" .context "values" .values "needs" (list "database")) | nindent 4 }}
  {{- with include "timestep.envFrom" . }}
  envFrom:
    {{- . | nindent 4 }}
  {{- end }}
  volumeMounts:
    {{- include "timestep.volumeMounts" (dict "context" .context "mounts" list) | nindent 4 }}
{{- end -}}

{{/*
What only the Prefect server's processes are told. Where they are apart, Redis has their messages and their tasks (docket);
the rest of Prefect's settings for that follows from its URL.
*/}}
{{- define "timestep.prefectServerEnv" -}}
- name: TIMESTEP_PREFECT_HOST
  value: "0.0.0.0"
- name: PREFECT_SERVER_DATABASE_MIGRATE_ON_START
  value: "false"
{{- if .Values.prefectServer.split.enabled }}
{{- $url := include "timestep.redisURL" . | fromYaml }}
{{- range list "PREFECT_REDIS_MESSAGING_URL" "PREFECT_SERVER_DOCKET_URL" }}
- {{ merge (dict "name" .) $url | toYaml | nindent 2 | trim }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "timestep.redisURL" -}}
{{- $redis := .Values.prefectServer.redis -}}
{{- include "timestep.secretKeyRef" (dict "context" . "existing" $redis.existingSecret "generated" "" "key" $redis.key) -}}
{{- end -}}

{{/* The size of a component with an autoscaler: its own number while there is none. */}}
{{- define "timestep.replicas" -}}
{{- if not .values.autoscaling.enabled -}}
replicas: {{ .values.replicas }}
{{- end -}}
{{- end -}}

{{/* Fewest pods that a component has. */}}
{{- define "timestep.fewest" -}}
{{- ternary .values.autoscaling.minReplicas .values.replicas .values.autoscaling.enabled -}}
{{- end -}}

{{/*
Probes of the workers, by the files they write: worker.ready once they poll, worker.waiting while their pool is missing.
Both count: the pool is made by a job that runs after the installation, and Helm waits for the workers before.
*/}}
{{- define "timestep.workerProbes" -}}
{{- $command := list "sh" "-c" "test -f /var/lib/timestep/run/worker.ready || test -f /var/lib/timestep/run/worker.waiting" -}}
startupProbe:
  exec:
    command: {{ toJson $command }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 150
readinessProbe:
  exec:
    command: {{ toJson $command }}
  periodSeconds: 10
  timeoutSeconds: 5
livenessProbe:
  exec:
    command: {{ toJson $command }}
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 4
{{- end -}}

{{/*
What only the Kubernetes worker is told. It watches the jobs of this release in their namespace, nothing else in the
cluster; and what its own settings hold of Prefect's key reaches flow runs as a reference to the Secret.
*/}}
{{- define "timestep.workerEnv" -}}
- name: PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES
  value: {{ include "timestep.jobNamespace" . }}
- name: PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ADDITIONAL_LABEL_FILTERS
  value: app.kubernetes.io/instance={{ .Release.Name }}
{{- if .Values.prefectServer.auth.enabled }}
{{- with (include "timestep.prefectAuth" . | fromYaml).valueFrom.secretKeyRef }}
- name: PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_NAME
  value: {{ .name }}
- name: PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_KEY
  value: {{ .key }}
{{- end }}
{{- end }}
{{- end -}}
