"""Search spaces: data, no computation.

A module holds BASE (a nested configuration as in `ldseg.config.Config.to_dict`), SPACE and METRIC. SPACE maps a dotted
configuration key to ("choice", [values]), ("uniform", low, high) or ("loguniform", low, high); a key without a dot maps
to ("options", {name: {dotted key: value}}) and sets several keys together, for choices that only make sense as one.
METRIC is the validation metric that the search improves and its direction.
"""
