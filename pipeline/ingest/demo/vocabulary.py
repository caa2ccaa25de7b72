"""The words of the demo catalogue: a category tree, and what the videos of each leaf talk about.

Every word belongs to one leaf, and none says which video, or which leaf, comes next.
"""

# top category -> leaf -> its ten words
TREE: dict[str, dict[str, str]] = {
    "Food": {
        "Baking": "sourdough brioche crust oven dough cinnamon muffins croissants yeast frosting",
        "Grilling": "brisket charcoal ribs smoker marinade skewers burgers embers steak tongs",
        "Street Food": "tacos dumplings falafel market stall noodles empanadas kebab samosas vendor",
        "Coffee": "espresso latte beans grinder crema filter roast barista cappuccino kettle",
        "Vegan": "tofu lentils chickpeas tempeh kale hummus cashew quinoa seitan avocado",
        "Seafood": "salmon oysters shrimp sushi lobster mussels squid ceviche tuna scallops",
        "Preserves": "jam pickles kimchi chutney jars brine marmalade sauerkraut canning pectin",
    },
    "Sports": {
        "Football": "goalkeeper penalty striker dribbling midfield corner offside volley derby tackle",
        "Climbing": "bouldering crag belay chalk overhang crimp harness summit rope carabiner",
        "Cycling": "peloton gravel sprint derailleur cadence saddle velodrome descent pedals wheelset",
        "Swimming": "freestyle butterfly lap pool goggles relay backstroke diving flipturn lanes",
        "Running": "marathon trail pacing stride intervals sneakers treadmill hill finish blisters",
        "Skateboarding": "ollie kickflip halfpipe ramp grind deck trucks bowl heelflip rails",
        "Basketball": "dunk rebound crossover hoop buzzer threepointer layup court fastbreak alley",
    },
    "Music": {
        "Guitar": "riff fretboard chords strumming pedalboard fingerpicking capo solo amplifier strings",
        "Piano": "nocturne arpeggio sonata keys waltz prelude scales metronome sheet ragtime",
        "Drums": "snare cymbal groove hihat paradiddle fills kick sticks backbeat toms",
        "Singing": "harmony falsetto vibrato choir acapella karaoke warmup ballad chorus soprano",
        "Producing": "synth sampler mixing bassline mastering sequencer loops reverb sidechain plugin",
        "Vinyl": "turntable record sleeve crate stylus pressing scratch needle shellac reissue",
        "Festivals": "stage headliner encore lineup crowd tent lasers campsite wristband confetti",
    },
    "Travel": {
        "Beaches": "lagoon snorkel palm surf sandbar hammock island tide reef coconut",
        "Mountains": "glacier ridge alpine hut valley peak switchback plateau avalanche meadow",
        "Cities": "skyline metro rooftop boulevard museum neon plaza tram cathedral alleyway",
        "Road Trips": "highway motel diner campervan odometer canyon roadside playlist detour desert",
        "Trains": "sleeper locomotive carriage platform viaduct conductor narrowgauge station timetable railway",
        "Camping": "campfire lantern stove sleepingbag forest tarp stargazing backpack cooler firewood",
        "Budget": "hostel cheap backpacker vouchers layover couchsurfing discount standby visas currency",
    },
    "Games": {
        "Speedruns": "glitch splits wallclip frame skip timer warp category worldrecord reset",
        "Strategy": "siege turns economy scouting civilization fortress diplomacy hexes garrison flank",
        "Puzzles": "sudoku riddle maze escape jigsaw logic crossword cube tangram nonogram",
        "Retro": "arcade cartridge pixel joystick console chiptune sprite emulator coinop scanlines",
        "Board Games": "meeples dice tabletop cards settlers auction tiles dungeon miniatures cooperative",
        "Building": "redstone castle blueprint blocks biome village bridge terraform minecart lighthouse",
        "Racing": "drift apex circuit chicane slipstream karts pitstop qualifying gearbox hairpin",
    },
    "Crafts": {
        "Knitting": "yarn needles cable mittens stitch scarf purl wool cardigan skein",
        "Woodwork": "dovetail chisel lathe walnut plane sawdust mortise varnish workbench oak",
        "Pottery": "clay kiln glaze wheel mug bisque porcelain slip bowls throwing",
        "Painting": "watercolor canvas palette brush acrylic easel gouache portrait pigment landscape",
        "Origami": "crane fold paper crease tessellation dragon lotus modular envelope square",
        "Sewing": "bobbin hem denim zipper pattern thimble quilt lining thread seam",
        "Jewelry": "silver gemstone solder bezel pendant ring beads hammering opal clasp",
    },
    "Animals": {
        "Cats": "kitten purring whiskers scratching tabby catnip pounce litter siamese zoomies",
        "Dogs": "puppy fetch leash retriever obedience wagging agility corgi kennel dachshund",
        "Birds": "parrot nest feathers owl feeder hummingbird migration cockatoo falcon plumage",
        "Aquariums": "tank corals guppies snails seahorse driftwood plankton clownfish moss bettas",
        "Horses": "gallop stable dressage foal mane bridle paddock hooves jumping farrier",
        "Reptiles": "gecko python terrarium tortoise chameleon burrow iguana shedding basking lizard",
        "Wildlife": "savanna elephant lion waterhole rhino safari leopard herd giraffe ranger",
    },
    "Science": {
        "Space": "nebula rocket orbit telescope galaxy astronaut comet moon eclipse satellite",
        "Chemistry": "flask reaction crystals acid titration indicator polymer catalyst precipitate bunsen",
        "Robots": "servo gripper sensor drone autonomous hexapod firmware soldering actuator lidar",
        "Physics": "pendulum magnet laser gyroscope superconductor friction wave resonance vacuum prism",
        "Biology": "microscope bacteria cells mushroom enzyme dna tardigrade spores petri fungus",
        "Geology": "volcano fossil quartz lava basalt earthquake meteorite cavern sediment amethyst",
        "Math": "fractal primes proof infinity geometry paradox topology matrix spiral probability",
    },
}
LEAVES = min(len(leaves) for leaves in TREE.values())

OPENERS = (
    "Quick", "Slow", "Honest", "Tiny", "Perfect", "Lazy", "Late night", "Sunday", "My favourite", "Beginner", "Bold",
    "Calm", "Wild", "Easy", "Secret", "Handy", "Surprising", "Weekend", "Classic", "Curious", "Everyday", "Brave",
    "Quiet", "Cosy", "Unexpected", "Clever", "Old school", "Modern",
)
CLOSERS = (
    "explained", "challenge", "from scratch", "gone wrong", "in one minute", "at home", "with friends", "on a budget",
    "close up", "for everyone", "in slow motion", "without tools", "step by step", "myths", "secrets", "reaction",
    "diary", "compared", "tips", "mistakes", "under pressure", "before breakfast", "up close", "done right",
)
DESCRIPTIONS = (
    "All about {0} and {1}, with a little {2} at the end.",
    "We try {0}, then {1}, and talk about {2}.",
    "What nobody tells you about {0}: {1} and {2} matter too.",
    "{0} first, {1} second, and {2} if time is left.",
    "Filmed in one take: {0}, {1} and {2}.",
    "Your questions on {0} answered, plus {1} and {2}.",
    "Why {0} beats {1}, and where {2} comes in.",
    "A look at {0} through {1} and {2}.",
)
