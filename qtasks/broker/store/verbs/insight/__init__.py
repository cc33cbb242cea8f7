"""What the console shows of all messages together: counts, figures over time, failures, and a search.

How it works. Nothing here is written when a message is accepted, claimed or settled. The log tells everything, it is
only appended to, and its entries are numbered: `index.count_log` follows it, a slice at a time, and notes how far it
got in the transaction that stores what it counted. So the figures are exact after any crash, a database of an earlier
release is counted from its first entry on, and tables that are damaged are made again (`index.start_again`).
"""
