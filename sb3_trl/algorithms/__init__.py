"""The algorithms: TRPL, FixPO, PAPI and the baselines that they are compared with."""
