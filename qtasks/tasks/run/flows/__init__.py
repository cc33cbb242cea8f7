"""What follows the calls of a flow, and flows that came to a halt."""
