"""Where messages live: verbs of the domain, one transaction each."""
