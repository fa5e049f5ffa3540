{{/* SPDX-FileCopyrightText: The nibble authors
     SPDX-License-Identifier: Apache-2.0 */}}

{{/* One value of `options` as it is written on a command line: Helm reads all numbers as floating-point ones. */}}
{{- define "nibble.word" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{- define "nibble.modelFolder" -}}
{{- if .Values.model.path -}}/models/{{ .Values.model.path }}{{- else -}}/models{{- end -}}
{{- end -}}

{{/* Arguments of nibble: a list. (dict "root" $ "role" "server|node") */}}
{{- define "nibble.args" -}}
{{- $values := .root.Values -}}
{{- $server := eq .role "server" -}}
- --log-level
- {{ $values.logLevel | quote }}
- serve
- {{ include "nibble.modelFolder" .root | quote }}
{{- if $server }}
{{- with $values.model.name }}
- --served-model-name
- {{ . | quote }}
{{- end }}
- --host
- {{ $values.host | quote }}
- --port
- {{ $values.ports.http | quote }}
- --grpc-port
- {{ $values.ports.grpc | quote }}
- --health-port
- {{ $values.ports.health | quote }}
{{- end }}
- --drain-delay
- "0"
- --shutdown-timeout
- {{ $values.drain.shutdownTimeoutSeconds | quote }}
{{- if gt (int $values.nodes) 1 }}
- --nnodes
- $(LWS_GROUP_SIZE)
- --node-rank
- $(LWS_WORKER_INDEX)
- --master-addr
- $(LWS_LEADER_ADDRESS)
- --master-port
- {{ $values.ports.cluster | quote }}
- --node-addr
- $(POD_IP)
- --cluster-secret-file
- {{ printf "/etc/nibble/cluster/%s" $values.cluster.key | quote }}
{{- if $values.cluster.tls.existingSecret }}
- --cluster-tls-ca
- /etc/nibble/cluster-tls/ca.crt
- --cluster-tls-cert
- /etc/nibble/cluster-tls/tls.crt
- --cluster-tls-key
- /etc/nibble/cluster-tls/tls.key
{{- with $values.cluster.tls.serverName }}
- --cluster-tls-server-name
- {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $server (include "nibble.authSecret" .root) }}
- --api-key-file
- {{ printf "/etc/nibble/auth/%s" ($values.auth.existingSecret | empty | ternary "api-keys" $values.auth.key) | quote }}
{{- end }}
{{- if and $server (include "nibble.tlsSecret" .root) }}
- --ssl-certfile
- /etc/nibble/tls/tls.crt
- --ssl-keyfile
- /etc/nibble/tls/tls.key
{{- if ne $values.tls.clientCertificates "none" }}
- --ssl-ca-certs
- /etc/nibble/tls/ca.crt
- --ssl-cert-reqs
- {{ $values.tls.clientCertificates | quote }}
{{- end }}
{{- end }}
{{- range $option, $value := $values.options }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- --{{ $option }}
{{- end }}
{{- else }}
{{- range (kindIs "slice" $value | ternary $value (list $value)) }}
- --{{ $option }}
- {{ include "nibble.word" . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "nibble.probe" -}}
httpGet:
  path: {{ .path }}
  port: health
periodSeconds: {{ .period }}
timeoutSeconds: {{ min 5 .period }}
failureThreshold: {{ .failures }}
{{- with .grace }}
# Not the pod's: what hangs answers nobody while it is waited for. preStop comes first, here as well.
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- end -}}

{{- define "nibble.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A pod template. (dict "root" $ "role" "server|node"): `server` has clients, `node` is another host of its group. */}}
{{- define "nibble.podTemplate" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
{{- $server := eq .role "server" -}}
{{- $group := gt (int $values.nodes) 1 -}}
{{- $hangs := add $values.drain.preStopSeconds $values.drain.marginSeconds -}}
metadata:
  labels:
    {{- /* Not the chart's version and the like: pods with another label are other pods, and start again. */}}
    {{- include "nibble.selector" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .role | quote }}
    {{- if and $server $values.inferencePool.enabled }}
    {{- /* nibble's metrics have vLLM's names, by which the endpoint picker finds queue and KV cache; the second is for old ones. */}}
    llm-d.ai/engine-type: vllm
    inference.networking.k8s.io/engine-type: vllm
    {{- end }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- if and $group $values.cluster.secret }}
    {{- /* Read at the start only; API keys and certificates are read again when they change. */}}
    nibble/cluster-secret: {{ $values.cluster.secret | sha256sum | trunc 16 | quote }}
    {{- end }}
    {{- if and $group $values.cluster.revision }}
    nibble/cluster-revision: {{ $values.cluster.revision | quote }}
    {{- end }}
    kubectl.kubernetes.io/default-container: nibble
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "nibble.serviceAccount" $root | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add $values.drain.preStopSeconds $values.drain.shutdownTimeoutSeconds $values.drain.marginSeconds }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    {{- with $values.supplementalGroups }}
    supplementalGroups:
      {{- range . }}
      - {{ int64 . }}
      {{- end }}
    {{- end }}
    seccompProfile:
      type: RuntimeDefault
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- with $values.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- /* There are images for no others. */}}
  nodeSelector: {{- merge (deepCopy $values.nodeSelector) (dict "kubernetes.io/arch" "amd64" "kubernetes.io/os" "linux") | toYaml | nindent 4 }}
  {{- with $values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{- toYaml . | nindent 6 }}
      labelSelector:
        matchLabels:
          {{- include "nibble.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $.role | quote }}
    {{- end }}
  {{- end }}
  {{- if eq $values.model.source "copy" }}
  initContainers:
    - name: model
      image: {{ required "model.source is copy: model.copy.image is missing" $values.model.copy.image | quote }}
      imagePullPolicy: {{ $values.model.copy.pullPolicy | quote }}
      command: [cp, -rL, {{ printf "%s/." $values.model.copy.from | quote }}, /models/]
      securityContext: {{- include "nibble.securityContext" . | nindent 8 }}
      {{- with $values.model.copy.resources }}
      resources: {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: model
          mountPath: /models
  {{- end }}
  containers:
    - name: nibble
      image: {{ include "nibble.image" $root | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy | quote }}
      args: {{- include "nibble.args" . | nindent 8 }}
      {{- if or $group $values.env }}
      env:
        {{- if $group }}
        - name: POD_IP
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
        {{- end }}
        {{- with $values.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- if $server }}
      ports:
        - name: http
          containerPort: {{ $values.ports.http }}
        {{- if ge (int $values.ports.grpc) 0 }}
        - name: grpc
          containerPort: {{ $values.ports.grpc }}
        {{- end }}
        - name: health
          containerPort: {{ $values.ports.health }}
        {{- if $group }}
        - name: cluster
          containerPort: {{ $values.ports.cluster }}
        {{- end }}
      {{- /* Live while it loads, so that this one asks whether it has become ready. */}}
      startupProbe:
        {{- include "nibble.probe" (dict "path" "/health/ready" "period" 5 "failures" (div (add (include "nibble.startupSeconds" $root) 4) 5) "grace" $hangs) | nindent 8 }}
      readinessProbe:
        {{- include "nibble.probe" (dict "path" "/health/ready" "period" $values.probes.periodSeconds "failures" $values.probes.readinessFailures) | nindent 8 }}
      livenessProbe:
        {{- include "nibble.probe" (dict "path" "/health/live" "period" $values.probes.periodSeconds "failures" $values.probes.livenessFailures "grace" $hangs) | nindent 8 }}
      {{- end }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $values.drain.preStopSeconds }}
      {{- with $values.resources }}
      resources: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext: {{- include "nibble.securityContext" . | nindent 8 }}
      volumeMounts:
        - name: model
          mountPath: /models
          readOnly: true
        - name: shm
          mountPath: /dev/shm
        - name: cache
          mountPath: /var/cache/nibble
        - name: tmp
          mountPath: /tmp
        {{- if and $server (include "nibble.authSecret" $root) }}
        - name: auth
          mountPath: /etc/nibble/auth
          readOnly: true
        {{- end }}
        {{- if and $server (include "nibble.tlsSecret" $root) }}
        - name: tls
          mountPath: /etc/nibble/tls
          readOnly: true
        {{- end }}
        {{- if $group }}
        - name: cluster
          mountPath: /etc/nibble/cluster
          readOnly: true
        {{- if $values.cluster.tls.existingSecret }}
        - name: cluster-tls
          mountPath: /etc/nibble/cluster-tls
          readOnly: true
        {{- end }}
        {{- end }}
        {{- with $values.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: model
      {{- if eq $values.model.source "pvc" }}
      persistentVolumeClaim:
        claimName: {{ $values.model.pvc.claimName | quote }}
        readOnly: true
      {{- else if eq $values.model.source "hostPath" }}
      hostPath:
        path: {{ $values.model.hostPath.path | quote }}
        type: Directory
      {{- else if eq $values.model.source "image" }}
      image:
        reference: {{ required "model.source is image: model.image.reference is missing" $values.model.image.reference | quote }}
        pullPolicy: {{ $values.model.image.pullPolicy | quote }}
      {{- else }}
      emptyDir:
        sizeLimit: {{ $values.model.copy.sizeLimit | quote }}
      {{- end }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ $values.shmSize | quote }}
    - name: cache
      emptyDir:
        sizeLimit: 64Mi
    - name: tmp
      emptyDir:
        sizeLimit: 64Mi
    {{- if and $server (include "nibble.authSecret" $root) }}
    - name: auth
      secret:
        secretName: {{ include "nibble.authSecret" $root | quote }}
        defaultMode: 0440
    {{- end }}
    {{- if and $server (include "nibble.tlsSecret" $root) }}
    - name: tls
      secret:
        secretName: {{ include "nibble.tlsSecret" $root | quote }}
        defaultMode: 0440
    {{- end }}
    {{- if $group }}
    - name: cluster
      secret:
        secretName: {{ include "nibble.clusterSecret" $root | quote }}
        defaultMode: 0440
    {{- if $values.cluster.tls.existingSecret }}
    - name: cluster-tls
      secret:
        secretName: {{ $values.cluster.tls.existingSecret | quote }}
        defaultMode: 0440
    {{- end }}
    {{- end }}
    {{- with $values.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
