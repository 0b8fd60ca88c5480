"""Policies: methods that answer a route's requests, reserved whole before anything runs."""
