"""pdevis as a model of the lm-evaluation-harness: python -m pdevis.lm_eval takes all of lm_eval's own flags."""
