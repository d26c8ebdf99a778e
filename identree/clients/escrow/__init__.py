"""
The escrow back ends (spec/notifications-and-policy section 8), one file each; :mod:`.build` picks one by the settings.
"""
