"""End to end, on real parts: sudo through pam_exec, Chromium, PostgreSQL, the provider from npm, and kill -9."""
