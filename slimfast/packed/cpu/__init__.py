"""How packed ops run on CPUs: through oneDNN or our own kernel, in memory that is planned once."""
