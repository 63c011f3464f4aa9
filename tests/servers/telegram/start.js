// Starts the Bot API server of telegram-test-api on 127.0.0.1 and the port given.
const TelegramServer = require('telegram-test-api');

const server = new TelegramServer({ host: '127.0.0.1', port: Number(process.argv[2]), storeTimeout: 600 });
server.start().then(() => console.log('ready'));
process.stdin.on('end', () => process.exit(0)).resume(); // ends with the one who started it
