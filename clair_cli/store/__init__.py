"""Objects in S3, Google Cloud Storage and Azure, and files behind https, as places like folders.

Nothing here is imported for more than a name by a run whose files are all on this machine; the
library that speaks to stores (obstore, extra `remote`) is imported with the first address.
"""
