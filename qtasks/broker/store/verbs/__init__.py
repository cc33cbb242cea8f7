"""What a store can do: one module for each subject, with functions that take a connection; `Store.write` runs them."""
