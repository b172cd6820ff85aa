"""How data are made: prototypes decorated and relaxed (the default data set), and crystals made up to measure with."""
