"""Search spaces: data, no computation.

A module holds BASE (a nested configuration as in `ldseg.config.Config.to_dict`), SPACE and METRIC. SPACE maps a dotted
configuration key to ("choice", [values]), ("uniform", low, high) or ("loguniform", low, high); a key without a dot maps
to ("options", {name: {dotted key: value}}) and sets several keys together, for choices that only make sense as one; a
value there that is a domain itself is drawn only with that option. METRIC is the validation metric that a search for
one number improves and its direction. START, if there is one, lists values of trials to try first.
"""
