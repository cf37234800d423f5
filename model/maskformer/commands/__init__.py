"""The implementations of the commands of `maskformer.cli`, each imported when its command runs."""
