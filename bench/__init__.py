"""Measurements of ditcache, made from outside: this folder imports it as a user would."""
