"""`fedrho labels`: noisy labels, models trained on them, and audits of both."""
