"""Rules over readings, and alerts: what a rule says (rule.py), which ship (defaults.py), from readings to alerts
(state.py), who is told (deliver.py), what is done (action.py), the same for Prometheus and Grafana (prometheus.py)."""
