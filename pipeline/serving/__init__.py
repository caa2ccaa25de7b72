"""A trained model at work: answers to requests, recommendations for all users, the published copy, an export."""
