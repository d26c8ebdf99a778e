"""
The words of passphrases (spec/host-agent section 9.2).

256 words of four letters, so that each carries eight bits; no two differ in one letter only, so that one slip of the
finger or the eye is not another word.
"""

from __future__ import annotations

WORDS = tuple(
    """
abet able ache afar aged ahoy airy akin alas alga ally ammo amps aqua area army asks atom aura auto away axis
baby back bald barn beam bell bird bite blab boat body bone book bowl bulb camp cash chef clip coal code cold
comb corn cost crab crew cube cyan czar data dawn deck dial dice dish dome door dots draw drum dune dusk duty
each ease echo eddy edge edit eels eggs elms envy epic ergo euro even exam face fair fall farm fern file find
flow foam folk fort four free frog fuel fuse gala game gear girl glad golf gown gram grid grow halo hand hawk
haze head hike hint honk hoop hope huge hymn iced idea idle idol inch info inky iota iris item jade jazz join
joke july jump junk keen kelp kept kiln king kiwi knee knit knob lane lava lazy lily lime link lion list lock
loft logo long loud lynx maid malt many mask meal mesh mild mole moon moss much neon nest news nine norm obey
odds odor ogre okra omen omit once ooze owls palm peas perk pier pipe plan plum poem polo pond pool puma quay
quiz rare reef rich road robe roof ruby rule saga scan seed self size skip slim snap snow sofa soup spin spot
star step surf taco talk taxi tent term than tiny tofu trek trim true tuba turn twig type undo upon urge urns
veil veto view visa void volt vote wave what wire word yeti yoga zoom
    """.split()
)
