"""Language models as tasks: the broker sends the request to the model, and the answer arrives as a delivery."""
