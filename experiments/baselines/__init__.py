"""Other libraries on our task: are our baselines as strong as theirs?"""
