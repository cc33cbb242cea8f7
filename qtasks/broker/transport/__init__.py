"""One HTTP attempt under one deadline, and the policy that decides which addresses it may reach."""
