"""Getting models: what a repository holds, what of it fits, how it comes into the Hugging Face cache and leaves it."""
