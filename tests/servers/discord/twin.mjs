// Starts the loopback Discord and lets the test act as its fans: one JSON call a line on stdin,
// one JSON answer a line on stdout.
import { createInterface } from 'node:readline'
import { DigitalDiscord } from 'discord-digital-twin'

const discord = new DigitalDiscord({
  guild: { name: 'Farense', channels: [{ name: 'geral', type: 0 }] },
  users: ['ana', 'bruno', 'carla', 'duarte', 'eva', 'filipe'].map((username) => ({ username })),
})
await discord.start()
const [channel] = await discord.prisma.channel.findMany()
console.log(JSON.stringify({
  port: discord.port,
  token: discord.botToken,
  bot: discord.botUserId,
  channel: channel.id,
  fan: await discord.getFirstNonBotUserId(),
}))

const more = {
  messages: ({ channelId }) => discord.channel(channelId).getMessages(),
  fans: async () =>
    (await discord.prisma.user.findMany({ where: { bot: false } })).map((user) => user.id),
}
for await (const line of createInterface({ input: process.stdin })) {
  const { call, args } = JSON.parse(line)
  try {
    const result = await (more[call] ?? discord[call].bind(discord))(args)
    console.log(JSON.stringify({ result: result ?? null }))
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }))
  }
}
await discord.stop()
process.exit(0)
