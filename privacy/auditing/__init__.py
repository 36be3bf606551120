"""Attacks on a mechanism, set beside what its claim allows; its contract as findings; a report on a trained model.

limits      what rho allows any attacker at most
attacker    the noise of any mechanism as a table, and the worst client against it
stream      canary clients on the real way: Update, clip, sum, release
intervals   what scores of canaries prove, with confidence
one_run     the largest epsilon that guesses about canaries refute
one_shot    the epsilon that cosines with random directions suggest
audit       all of it against one mechanism, in one report
checks      the contract of a mechanism as findings
membership  attacks on the predictions of a trained model; membership_tfp: TensorFlow Privacy's
"""
