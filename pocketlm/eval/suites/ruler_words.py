"""Words that RULER's tasks hide and count (our choice: the reference draws them with the package
wonderwords).
"""

ADJECTIVE_TEXT = """
able amber ancient bitter bold brave brief bright broad calm clever cold common coral crisp curious
damp dark deep dense distant dusty eager early easy empty exact faint fair fancy fast fierce final
firm flat fresh full gentle giant glad golden grand green harsh heavy hidden honest huge
humble icy keen kind large late lazy light little lively lonely long loose loud lucky mellow mighty
mild modern narrow neat noble odd old open pale patient plain polite proud pure quick quiet rapid
rare raw ready rich ripe rough round royal rusty salty sharp shiny short shy silent silver simple
slim slow small smooth soft solid sour spare steady steep stern still strange strong sudden sunny
sweet swift tall tame tender thick thin tidy tiny tough vast vivid warm weary wild wise young
"""
NOUN_TEXT = """
acorn anchor apple arrow basket beach bell bench berry bird blanket boat bottle branch bread brick
bridge brook brush bucket button cabin cable camel candle canyon carpet castle cave chain chair
cherry circle cliff clock cloud coast comet compass copper corner cotton crane creek crown crystal
curtain daisy desert diamond dock door dragon drawer drum eagle engine falcon farm feather fence
ferry field finger flag flame flute forest fork fountain fox garden garlic gate glacier glove grape
guitar hammer harbor harvest hat hedge helmet hill honey horse island ivory jacket jar jewel kettle
key kitchen kite ladder lake lamp lantern leaf lemon letter lion lizard lock magnet maple market
marsh meadow melon mirror monkey moon mountain museum needle nest oak ocean olive onion orchard
otter owl paddle palace paper parrot path peach pearl pebble pencil pepper piano pillow pine planet
plate plum pond prairie quarry rabbit raft rain raven ribbon river road rocket roof rope rose sail
salmon saddle sand scarf shadow shell shelf ship shoe shovel signal sky snow sparrow spider spoon
spring star statue stone storm stove stream summit table temple tent thread tiger torch tower trail
train tree trumpet tulip tunnel turtle valley village violin wagon wall walnut water wave whale
wheel whistle window winter wolf wood yard zebra
"""
ADJECTIVES, NOUNS = ADJECTIVE_TEXT.split(), NOUN_TEXT.split()
