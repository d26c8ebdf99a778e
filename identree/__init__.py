"""identree: an identity bridge between an OIDC provider and Linux hosts."""

__version__ = "0.1.0"
