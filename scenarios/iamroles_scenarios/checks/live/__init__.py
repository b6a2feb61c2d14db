"""Checks of live streams: access dies with the credential, also in the middle of a stream."""
