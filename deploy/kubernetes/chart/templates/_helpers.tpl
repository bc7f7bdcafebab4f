{{/* What every template shares. A role is one of the subcommands of `holdfast`; `role` stands for its name, `root` for the chart's scope. */}}

{{- define "holdfast.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* A tag as part of a name. */}}
{{- define "holdfast.version" -}}
{{ regexReplaceAll "[^a-z0-9]+" (lower .) "-" | trunc 24 | trimSuffix "-" }}
{{- end }}

{{- define "holdfast.selector" -}}
app.kubernetes.io/name: holdfast
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- with .tag }}
app.kubernetes.io/version: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "holdfast.metadata" -}}
name: {{ .name | default (printf "%s-%s" .root.Release.Name .role) }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "holdfast.selector" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{/* The address of serve. Each version has one of its own, since Restate keeps invocations at the handlers with which they began. */}}
{{- define "holdfast.serve" -}}
{{ .Release.Name }}-serve-{{ include "holdfast.version" (include "holdfast.tag" .) }}
{{- end }}

{{- define "holdfast.serve-url" -}}
{{- $files := mergeOverwrite (deepCopy .Values.files) (deepCopy .Values.serve.files) -}}
{{ ternary "https" "http" (hasKey $files "serve-certificate") }}://{{ include "holdfast.serve" . }}.{{ .Release.Namespace }}.svc:9080
{{- end }}

{{/* The settings that the chart gives by itself, as a dict. */}}
{{- define "holdfast.own-settings" -}}
{{- $listen := .root.Values.listen }}
http-listen: {{ printf "%s:9464" $listen | quote }}
health-listen: {{ printf "%s:9465" $listen | quote }}
drain-timeout: {{ .root.Values.drainSeconds }}s
{{- if eq .role "serve" }}
serve-listen: {{ printf "%s:9080" $listen | quote }}
{{- end }}
{{- if eq .role "webhook" }}
webhook-listen: {{ printf "%s:9081" $listen | quote }}
{{- end }}
{{- end }}

{{/* The servers that each role speaks to. */}}
{{- define "holdfast.servers" -}}
migrate: [postgres]
register: [kafka, restate]
gate: [kafka, restate]
serve: [postgres, restate, provider, mail]
relay: [kafka, postgres]
webhook: [kafka, provider]
verify: [kafka, postgres, provider]
{{- end }}

{{/* Those of `values` that are not about a server which `role` does not speak to, nor about another role: a secret goes no further. */}}
{{- define "holdfast.shared" -}}
{{- $servers := get (include "holdfast.servers" . | fromYaml) .role }}
{{- $about := dict "kafka" "kafka" "restate" "restate" "database" "postgres" "loyalty" "postgres" "provider" "provider" "smtp" "mail"
  "mail" "mail" "gate" "gate" "serve" "serve" "identity" "serve" "relay" "relay" "webhook" "webhook" }}
{{- $shared := dict }}
{{- range $name, $value := .values }}
{{- $whom := get $about (splitList "-" $name | first) }}
{{- if or (not $whom) (has $whom $servers) (eq $whom $.role) }}
{{- $_ := set $shared $name $value }}
{{- end }}
{{- end }}
{{- toYaml $shared }}
{{- end }}

{{/* A pod's template: what Deployments, StatefulSets, jobs and the cron job have in common. Takes `args`, and `long` for a process that
lives long, with its `ports`. */}}
{{- define "holdfast.pod" -}}
{{- $root := .root }}
{{- $role := index $root.Values .role }}
{{- $settings := dict "log-format" "json" }}
{{- if eq .role "register" }}
{{- $_ := set $settings "serve-url" (include "holdfast.serve-url" $root) }}
{{- end }}
{{- $shared := include "holdfast.shared" (dict "role" .role "values" $root.Values.settings) | fromYaml }}
{{- $settings = mergeOverwrite $settings $shared (deepCopy $role.settings) (include "holdfast.own-settings" . | fromYaml) }}
{{- $files := mergeOverwrite (include "holdfast.shared" (dict "role" .role "values" $root.Values.files) | fromYaml) (deepCopy $role.files) }}
{{- $mounts := mergeOverwrite (deepCopy $root.Values.mounts) (deepCopy $role.mounts) }}
{{- $all := mergeOverwrite (deepCopy $mounts) $files }}
{{- $image := $root.Values.image }}
{{- $tag := .tag | default (include "holdfast.tag" $root) }}
{{- $isCurrent := eq $tag (include "holdfast.tag" $root) }}
metadata:
  labels:
    {{- include "holdfast.selector" . | nindent 4 }}
spec:
  {{- with $role.pod }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  serviceAccountName: {{ $root.Values.serviceAccountName }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile: {type: RuntimeDefault}
  {{- if .long }}
  terminationGracePeriodSeconds: {{ add $root.Values.drainSeconds 15 }}
  {{- if not (hasKey $role.pod "topologySpreadConstraints") }}
  topologySpreadConstraints:
    {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - topologyKey: {{ $key }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "holdfast.selector" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  {{- else }}
  restartPolicy: Never
  {{- end }}
  containers:
    - name: holdfast
      image: {{ $image.repository }}:{{ $tag }}{{ if and $image.digest $isCurrent }}@{{ $image.digest }}{{ end }}
      imagePullPolicy: {{ $image.pullPolicy }}
      args: {{ toJson .args }}
      env:
        - name: HOLDFAST_INSTANCE
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        {{- range $flag, $value := $settings }}
        - name: HOLDFAST_{{ upper $flag | replace "-" "_" }}
          value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
        {{- end }}
        {{- range $flag, $file := $files }}
        - name: HOLDFAST_{{ upper $flag | replace "-" "_" }}
          value: {{ printf "/etc/holdfast/%s%s" $flag (empty $file.key | ternary "" (printf "/%s" $file.key)) }}
        {{- end }}
      {{- if .long }}
      ports:
        - {name: metrics, containerPort: 9464}
        - {name: health, containerPort: 9465}
        {{- range $name, $port := .ports }}
        - {name: {{ $name }}, containerPort: {{ $port }}}
        {{- end }}
      livenessProbe:
        httpGet: {path: /livez, port: health}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: health}
        periodSeconds: 5
        timeoutSeconds: 5
      {{- if .ports }}
      # Calls still come for a moment after the pod has left its Service.
      lifecycle:
        preStop: {sleep: {seconds: 5}}
      {{- end }}
      {{- end }}
      resources:
        {{- toYaml $role.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      {{- with $all }}
      volumeMounts:
        {{- range $name, $_ := . }}
        - {name: {{ $name }}, mountPath: /etc/holdfast/{{ $name }}, readOnly: true}
        {{- end }}
      {{- end }}
  {{- with $all }}
  # Whole folders, no subPath: what is replaced in a secret appears in them.
  volumes:
    {{- range $name, $source := . }}
    - name: {{ $name }}
      {{- if $source.secret }}
      secret: {secretName: {{ $source.secret }}, defaultMode: 0440}
      {{- else }}
      configMap: {name: {{ $source.configMap }}}
      {{- end }}
    {{- end }}
  {{- end }}
{{- end }}
