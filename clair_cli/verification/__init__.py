"""Is an output what its report says?"""
