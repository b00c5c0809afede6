"""What a model is written with: interactions, priors, posterior families, likelihoods, and the guide's base class."""
