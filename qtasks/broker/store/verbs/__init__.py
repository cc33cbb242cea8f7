"""The verbs and queries of the store, one module for each subject. `Store.write` and `Store.read` run them."""
