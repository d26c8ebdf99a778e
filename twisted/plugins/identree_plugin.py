"""The plugin that ``twistd identree`` and ``twist identree`` find; it imports nothing else of identree."""

from twisted.application.service import ServiceMaker

identree = ServiceMaker("identree", "identree.service", "identity bridge for Linux hosts", "identree")
