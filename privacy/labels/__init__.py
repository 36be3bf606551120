"""Label differential privacy: labels are answered once by randomizers, and everything after uses the answers alone.

Mechanisms, priors, the ledger, the multi-stage trainer and the audits; numpy and scipy only. What is protected is the label of
one record, by substitution; features, the number of records and the classes are public.
"""
