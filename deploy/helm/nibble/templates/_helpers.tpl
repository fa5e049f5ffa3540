{{/* SPDX-FileCopyrightText: The nibble authors
     SPDX-License-Identifier: Apache-2.0 */}}

{{- define "nibble.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "nibble" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-nibble" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "nibble.selector" -}}
app.kubernetes.io/name: nibble
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "nibble.labels" -}}
{{ include "nibble.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{/* Pods that serve clients: all of a Deployment, the leaders of a LeaderWorkerSet. */}}
{{- define "nibble.serverSelector" -}}
{{ include "nibble.selector" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "nibble.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{- $kind := eq (toString .Values.options.device) "cpu" | ternary "cpu" "cuda" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $kind) }}
{{- end -}}
{{- end -}}

{{- define "nibble.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "nibble.fullname" .) }}
{{- end -}}

{{/* Loading, until the container is started again; hosts of a group are provisioned, pull images and copy models each in its
     own time, and nibble itself waits half an hour for them to join. */}}
{{- define "nibble.startupSeconds" -}}
{{- if .Values.probes.startupSeconds -}}
{{ int .Values.probes.startupSeconds }}
{{- else -}}
{{ gt (int .Values.nodes) 1 | ternary 5400 1800 }}
{{- end -}}
{{- end -}}

{{- define "nibble.authSecret" -}}
{{- if .Values.auth.existingSecret -}}
{{ .Values.auth.existingSecret }}
{{- else if .Values.auth.keys -}}
{{ include "nibble.fullname" . }}-api-keys
{{- end -}}
{{- end -}}

{{- define "nibble.tlsSecret" -}}
{{- if .Values.tls.existingSecret -}}
{{ .Values.tls.existingSecret }}
{{- else if .Values.tls.certificate -}}
{{ include "nibble.fullname" . }}-tls
{{- end -}}
{{- end -}}

{{- define "nibble.clusterSecret" -}}
{{ .Values.cluster.existingSecret | default (printf "%s-cluster" (include "nibble.fullname" .)) }}
{{- end -}}

{{/* Not the Service's for a LeaderWorkerSet: its controller makes a headless Service of the set's own name, by which hosts find
     their leader before it is ready, and takes one that is there for it. */}}
{{- define "nibble.workloadName" -}}
{{- include "nibble.fullname" . -}}
{{- if gt (int .Values.nodes) 1 -}}-group{{- end -}}
{{- end -}}

{{- define "nibble.workload" -}}
{{- if gt (int .Values.nodes) 1 -}}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
{{- else -}}
apiVersion: apps/v1
kind: Deployment
{{- end }}
name: {{ include "nibble.workloadName" . | quote }}
{{- end -}}

{{/* Options of nibble serve that the chart sets, and by which of its values. */}}
{{- define "nibble.ownOptions" -}}
host: host
port: ports.http
grpc-port: ports.grpc
health-port: ports.health
master-port: ports.cluster
shutdown-timeout: drain.shutdownTimeoutSeconds
drain-delay: drain.preStopSeconds, which comes before it
served-model-name: model.name
nnodes: nodes
node-rank: nodes
master-addr: nodes
node-addr: nodes
cluster-secret-file: cluster.existingSecret
cluster-tls-ca: cluster.tls.existingSecret
cluster-tls-cert: cluster.tls.existingSecret
cluster-tls-key: cluster.tls.existingSecret
cluster-tls-server-name: cluster.tls.serverName
api-key: auth.existingSecret
api-key-file: auth.existingSecret
ssl-certfile: tls.existingSecret
ssl-keyfile: tls.existingSecret
ssl-ca-certs: tls.existingSecret
ssl-cert-reqs: tls.clientCertificates
{{- end -}}

{{/* What values.schema.json cannot say, or not as clearly. */}}
{{- define "nibble.validate" -}}
{{- $own := include "nibble.ownOptions" . | fromYaml -}}
{{- range $option, $_ := .Values.options -}}
{{- with index $own $option -}}
{{- fail (printf "options.%s: the chart sets --%s, by %s" $option $option .) -}}
{{- end -}}
{{- end -}}
{{- $group := gt (int .Values.nodes) 1 -}}
{{- $numbers := dict -}}
{{- range $name, $number := .Values.ports -}}
{{- $used := and (ge (int $number) 0) (or $group (ne $name "cluster")) -}}
{{- if and $used (hasKey $numbers (toString (int $number))) -}}
{{- fail (printf "ports.%s and ports.%s are both %d" (get $numbers (toString (int $number))) $name (int $number)) -}}
{{- end -}}
{{- if $used -}}{{- $_ := set $numbers (toString (int $number)) $name -}}{{- end -}}
{{- end -}}
{{- range $label, $_ := .Values.podLabels -}}
{{- if or (has $label (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "llm-d.ai/engine-type" "inference.networking.k8s.io/engine-type")) (hasPrefix "leaderworkerset.sigs.k8s.io/" $label) -}}
{{- fail (printf "podLabels: %s is not free: Services, policies or the endpoint picker find pods by it" $label) -}}
{{- end -}}
{{- end -}}
{{- range $annotation, $_ := .Values.podAnnotations -}}
{{- if has $annotation (list "kubectl.kubernetes.io/default-container" "nibble/cluster-secret" "nibble/cluster-revision") -}}
{{- fail (printf "podAnnotations: the chart sets %s" $annotation) -}}
{{- end -}}
{{- end -}}
{{- $names := $group | ternary (list "POD_IP" "LWS_GROUP_SIZE" "LWS_WORKER_INDEX" "LWS_LEADER_ADDRESS") list -}}
{{- range .Values.env -}}
{{- if has .name $names -}}
{{- fail (printf "env: %s comes twice; pods of a group have POD_IP and LWS_*" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if and $group (ne .Values.cluster.key "cluster-secret") (not .Values.cluster.existingSecret) (not .Values.cluster.secret) -}}
{{- fail "cluster.key: the secret that the chart makes up is under cluster-secret; another entry wants cluster.existingSecret or cluster.secret" -}}
{{- end -}}
{{- if and .Values.inferencePool.enabled .Values.networkPolicy.enabled .Values.networkPolicy.clients (not .Values.inferencePool.endpointPicker.podLabels) -}}
{{- fail "inferencePool with networkPolicy.clients: the endpoint picker reads /metrics; say by which labels its pods are known as inferencePool.endpointPicker.podLabels" -}}
{{- end -}}
{{- $tls := include "nibble.tlsSecret" . -}}
{{- if and (ne .Values.tls.clientCertificates "none") (not $tls) -}}
{{- fail "tls.clientCertificates wants tls.existingSecret, or tls.certificate and tls.key" -}}
{{- end -}}
{{- if and .Values.tls.certificate (ne .Values.tls.clientCertificates "none") (not .Values.tls.clientCa) -}}
{{- fail "tls.clientCertificates wants tls.clientCa" -}}
{{- end -}}
{{- if ne (empty .Values.tls.certificate) (empty .Values.tls.key) -}}
{{- fail "tls.certificate and tls.key: want both or none" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (include "nibble.authSecret" .) (not .Values.serviceMonitor.apiKeySecret.name) -}}
{{- fail "serviceMonitor with auth: /metrics wants a key; name a Secret that has one as serviceMonitor.apiKeySecret.name" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (eq .Values.tls.clientCertificates "required") (not .Values.serviceMonitor.tlsConfig.cert) -}}
{{- fail "serviceMonitor with tls.clientCertificates=required: Prometheus wants a certificate, as serviceMonitor.tlsConfig.cert and keySecret" -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.type "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas is %d, autoscaling.maxReplicas %d" (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- $ranks := mul (index .Values.options "tensor-parallel-size" | default 1) (index .Values.options "pipeline-parallel-size" | default 1) -}}
{{- if ne (mod $ranks .Values.nodes) 0 -}}
{{- fail (printf "tensor-parallel-size x pipeline-parallel-size are %d ranks, want a multiple of nodes (%d)" $ranks (int .Values.nodes)) -}}
{{- end -}}
{{- $accelerators := list -}}
{{- range $resource, $_ := .Values.resources.limits -}}
{{- if hasPrefix "nvidia.com/" $resource -}}{{- $accelerators = append $accelerators $resource -}}{{- end -}}
{{- end -}}
{{- if and (eq (toString .Values.options.device) "cuda") (not $accelerators) -}}
{{- fail "options.device is cuda: resources.limits wants GPUs, as nvidia.com/gpu" -}}
{{- end -}}
{{- $gpus := index (.Values.resources.limits | default dict) "nvidia.com/gpu" -}}
{{- if and $gpus (ne (int $gpus) (int (div $ranks .Values.nodes))) -}}
{{- fail (printf "resources.limits has %d of nvidia.com/gpu, each host has %d ranks, which take one each" (int $gpus) (div $ranks .Values.nodes)) -}}
{{- end -}}
{{- end -}}
