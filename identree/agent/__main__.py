"""``python -m identree.agent``, and what the archive runs."""

from identree.agent.main import main

main()
