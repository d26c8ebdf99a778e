"""
What runs on a managed host: the helper that ``pam_exec`` starts, and its set-up.

Standard library only, Python 3.9 to 3.13, and nothing else of identree. ``tools/build_agent.py`` packs these modules
into ``identree.pyz``. What is imported before the first byte goes to the server is kept small on purpose, because
every ``sudo`` pays for it (spec/host-agent section 18.1): ``main``, ``pam``, ``config``, ``caller``, ``watch``,
``wire`` and ``text``. Everything else is imported while the server is thinking.
"""
