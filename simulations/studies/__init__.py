"""Studies to start from: `fedrho simulate example` writes one."""
