"""The registry: which version of each model is served, who decided that, and on what proof. Imports no torch.

log      what happened, an entry a line: chained by hashes, signed, only ever added to. It is the truth
state    the log, folded: versions, champion, the champions before it
store    versions/N, copies that nobody changes, and the link `current`, which servers follow
change   promote and roll back: intent into the log, link, done into the log
gates    what a version must pass before it is promoted
mirror   the same in MLflow, which follows later
follow   a model in the user's own process, which is always the champion
"""
