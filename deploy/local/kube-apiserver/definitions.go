// Package definitions imports what controller-gen makes the Prometheus operator's definitions of, so that go.mod pins it.
package definitions

import _ "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
