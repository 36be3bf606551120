"""What those who run a server look at and turn: operator port, metrics, logs, exports."""
