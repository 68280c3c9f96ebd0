"""Encrypted tokens in frameworks that bring their own models, validators, serializers and admin pages.

A module imports its framework when one of its functions is called, and no other module of the package imports these.
"""
