"""What this agent was built from; ``tools/build_agent.py`` writes the real values into the archive."""

VERSION = "dev"
COMMIT = ""
