"""One HTTP attempt under one deadline, and the policy that says which addresses it may reach."""
